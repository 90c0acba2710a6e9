//! Claims as values of headers, as Envoy writes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use model::claims::Claim;

use super::token::whole;

/// A token's payload, as it came or padded.
pub(super) fn payload(encoded: &str, is_padded: bool) -> Option<HeaderValue> {
    let padding = if is_padded { (4 - encoded.len() % 4) % 4 } else { 0 };
    HeaderValue::from_str(&format!("{encoded}{}", "=".repeat(padding))).ok()
}

/// Texts as they are, numbers and truth values as text, lists and objects as base64 of their JSON; none for `null`, an empty text, and what
/// cannot be a header's value.
pub(super) fn claim(claim: &Claim) -> Option<HeaderValue> {
    let text = match claim {
        Claim::Null => return None,
        Claim::Bool(value) => value.to_string(),
        Claim::Number(number) => number_text(*number),
        Claim::Text(text) => text.to_string(),
        Claim::List(_) | Claim::Object(_) => {
            let mut json = String::new();
            write_json(claim, &mut json);
            STANDARD.encode(json)
        }
    };
    (!text.is_empty()).then(|| HeaderValue::from_str(&text).or_else(|_| HeaderValue::from_bytes(text.as_bytes())).ok())?
}

/// Whole numbers from 0 on without a point, others with six digits behind it.
fn number_text(number: f64) -> String {
    match whole(number).filter(|_| number.fract() == 0.0) {
        Some(whole) => whole.to_string(),
        None => format!("{number:.6}"),
    }
}

fn write_json(claim: &Claim, out: &mut String) {
    match claim {
        Claim::Null => out.push_str("null"),
        Claim::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Claim::Number(number) => out.push_str(&number.to_string()),
        Claim::Text(text) => write_text(text, out),
        Claim::List(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_json(item, out);
            }
            out.push(']');
        }
        Claim::Object(members) => {
            out.push('{');
            for (at, (name, value)) in members.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_text(name, out);
                out.push(':');
                write_json(value, out);
            }
            out.push('}');
        }
    }
}

/// As protobuf's JSON has it: angle brackets are escaped, too.
fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            letter if letter.is_control() || letter == '<' || letter == '>' => out.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_written_as_envoy_writes_them() {
        let text = |claim_of: Claim| claim(&claim_of).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        assert_eq!(text(Claim::Number(17.0)).as_deref(), Some("17"));
        assert_eq!(text(Claim::Number(-1.5)).as_deref(), Some("-1.500000"));
        assert_eq!(text(Claim::Bool(false)).as_deref(), Some("false"));
        assert_eq!(text(Claim::Text("é".into())).as_deref(), Some("é"));
        for none in [Claim::Null, Claim::Text("".into()), Claim::Text("a\nb".into())] {
            assert_eq!(text(none), None);
        }
        let list = Claim::List(vec![Claim::Text("a<\"".into()), Claim::Number(1.0), Claim::Object(vec![("k".into(), Claim::Null)])]);
        assert_eq!(text(list), Some(STANDARD.encode(r#"["a\u003c\"",1,{"k":null}]"#)));
    }

    #[test]
    fn a_payload_is_padded_where_asked() {
        assert_eq!(payload("e30", true).map(|value| value.as_bytes().to_vec()), Some(b"e30=".to_vec()));
        assert_eq!(payload("e30", false).map(|value| value.as_bytes().to_vec()), Some(b"e30".to_vec()));
    }
}
