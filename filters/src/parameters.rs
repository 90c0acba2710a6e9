//! Changes to the parameters of a path.
//!
//! Source: Envoy's header mutation. Parameters are found by their decoded names, and written anew in the order of these: as they came, each with
//! an equals sign, and what is new encoded, so that nothing in a value separates it from the next.

use std::borrow::Cow;
use std::collections::BTreeMap;

use model::format::TextFormat;
use model::headers::{AppendAction, ParameterChange};

use crate::header_match::{decoded, path_only, query_only};

/// The path with its parameters changed. `render` makes the value of a format.
#[must_use]
pub fn change(changes: &[ParameterChange], path: &str, render: impl Fn(&TextFormat) -> Vec<u8>) -> String {
    // As they are written, by decoded name.
    let mut all = BTreeMap::<Cow<'_, str>, Vec<(Cow<'_, str>, Cow<'_, str>)>>::new();
    for parameter in query_only(path).unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        all.entry(decoded(name)).or_default().push((name.into(), value.into()));
    }
    for change in changes {
        match change {
            ParameterChange::Remove(name) => drop(all.remove(&**name)),
            ParameterChange::Add { name, value, action } => {
                let made = || (encoded(name.as_bytes()).into(), encoded(&render(value)).into());
                let known = all.get_mut(&**name);
                match (action, known) {
                    (AppendAction::Append, Some(values)) => values.push(made()),
                    (AppendAction::AddIfAbsent, Some(_)) | (AppendAction::OverwriteIfExists, None) => {}
                    (AppendAction::Overwrite | AppendAction::OverwriteIfExists, Some(values)) => *values = vec![made()],
                    (AppendAction::Append | AppendAction::AddIfAbsent | AppendAction::Overwrite, None) => {
                        all.insert(Cow::Borrowed(name), vec![made()]);
                    }
                }
            }
        }
    }
    let mut out = path_only(path).to_owned();
    let mut separator = '?';
    for (name, value) in all.values().flatten() {
        out.push(separator);
        out.extend([name, "=", value]);
        separator = '&';
    }
    out
}

/// What is no unreserved character of RFC 3986 is percent-encoded.
fn encoded(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(byte) {
            out.push(char::from(*byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_changed_in_order_and_no_value_makes_another() {
        let add = |name: &str, value: &str, action| ParameterChange::Add {
            name: name.into(),
            value: TextFormat::parse(value, &mut Vec::new()),
            action,
        };
        let changes = [
            add("a", "2&x=1", AppendAction::Append),
            add("b", "no", AppendAction::AddIfAbsent),
            add("c", "no", AppendAction::OverwriteIfExists),
            add("d", "4", AppendAction::Overwrite),
            ParameterChange::Remove("gone".into()),
        ];
        let literal = |format: &TextFormat| format.as_literal().unwrap_or_default().to_vec();
        assert_eq!(change(&changes, "/p?gone=1&b=3&a=1&gone=2", literal), "/p?a=1&a=2%26x%3D1&b=3&d=4");
        assert_eq!(change(&[ParameterChange::Remove("a".into())], "/p?a=1", literal), "/p");
    }

    #[test]
    fn no_way_to_write_a_name_hides_a_parameter() {
        let literal = |format: &TextFormat| format.as_literal().unwrap_or_default().to_vec();
        let removed = |query: &str| change(&[ParameterChange::Remove("debug".into())], query, literal);
        assert_eq!(removed("/p?%64ebug=1&de%62%75g=2&a=%31&debug"), "/p?a=%31", "what stays is as it came");
        assert_eq!(removed("/p?%2564ebug=1&d%+bug=2"), "/p?%2564ebug=1&d%+bug=2", "another name, and none that is encoded");
        let set = |name: &str, action| ParameterChange::Add { name: name.into(), value: TextFormat::parse("2", &mut Vec::new()), action };
        assert_eq!(change(&[set("user", AppendAction::Overwrite)], "/p?%75ser=root&user=root", literal), "/p?user=2");
        assert_eq!(change(&[set("a b", AppendAction::Append)], "/p?a%20b=1", literal), "/p?a%20b=1&a%20b=2");
        assert_eq!(change(&[set("a b", AppendAction::AddIfAbsent)], "/p?a%20b=1", literal), "/p?a%20b=1");
    }
}
